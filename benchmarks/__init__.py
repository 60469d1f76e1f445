"""What MSOCKS costs and what a move costs, measured in the lab beside programs that do comparable work."""
