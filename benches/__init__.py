"""Benches: the cost of single steps (pytest-benchmark), and that of a whole request beside nginx (`nginx_ratio`)."""
