"""The command line: a module for each verb, loaded when it is called. `docs/reference/cli.md` is the manual."""
