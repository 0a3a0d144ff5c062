"""Parsers of what comes from outside, tried with inputs that nobody meant."""
