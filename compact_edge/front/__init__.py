"""Search over sizes and types together: the best file within limits, and the front of all of them."""
