"""What was decided on advice, how it is carried out, and where advice comes from."""
