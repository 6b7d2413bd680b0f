"""The asyncio client's calls, by subject: those of `headway_client.blocking`, awaited."""
