"""How busy, how well used and how well balanced GPUs, nodes, pools and the fleet are."""
