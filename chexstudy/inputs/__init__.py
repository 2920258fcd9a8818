"""Files of users, read as they meant them or refused in one sentence: tables, identifiers, placeholders, YAML."""
