"""The splice: two TCP connections joined in the kernel, so that acknowledgements are end to end."""
