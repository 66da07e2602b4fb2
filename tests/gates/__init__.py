"""Gates that are run by hand, and the pages that say of which commit they were passed (docs/gates)."""
