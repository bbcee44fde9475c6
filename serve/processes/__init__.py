"""The processes of a server: a single one, or a supervisor and its workers, and the messages between them."""
