"""What holds for the whole of FLM, whoever breaks what: nothing secret is left where others may look."""
