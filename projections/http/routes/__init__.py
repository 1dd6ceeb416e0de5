"""The routes of the read side: tables, and points of the journal."""
