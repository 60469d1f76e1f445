"""`msocks run`: the kernel hands TCP connections of ordinary programs to the agent, whatever the programs are."""
