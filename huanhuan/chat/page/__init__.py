"""The chat page, one module a job."""
