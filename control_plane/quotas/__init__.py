"""How much a project may hold, and what it used."""
