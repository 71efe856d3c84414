"""`listen.workers`: a supervisor, and the processes it runs at one address."""
