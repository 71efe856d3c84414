"""The steps from one schema to the next; alembic runs them in order, each once a database."""
