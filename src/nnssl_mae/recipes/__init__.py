"""Recipes: everything that decides a run, as frozen, validated values read from YAML."""
