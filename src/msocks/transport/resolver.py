"""The proxy's addresses, where an access link names it: looked up in good time, and kept while moving."""
