"""Tokens of Spirit LM: vocabulary, speech units, prompts."""
