"""The agent: mobility for programs that know nothing of it, behind one local port. Import from the modules."""
