"""What GPUs cost, what of it is wasted, and what could be saved."""
