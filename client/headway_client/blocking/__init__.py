"""The blocking client's calls, by subject. `headway_client.aio` holds the same for asyncio; a test keeps the two in step."""
