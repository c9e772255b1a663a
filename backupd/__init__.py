"""PostgreSQL backups that are proven to restore. See README.md and FORMAT.md."""

__version__ = "0.1.0"
