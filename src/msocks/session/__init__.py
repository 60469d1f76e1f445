"""The life of a session, sans-IO: decisions and bookkeeping; what is to be done comes back as data."""
