"""A network testbed made of Linux namespaces. It imports nothing of `msocks`: it is the judge."""
