"""Simulated clients: profiles, prompts with the roles turned round, and what they reply."""
