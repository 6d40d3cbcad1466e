"""Who got which verdict, and what people say of it: a chain of records in SQLite."""
