"""What is counted, and how a Prometheus server reads it.

Written here rather than taken from a client library: what the daemon needs of one is the text format and three kinds of
numbers, and what it needs besides is a bound. A peer must not be able to make series, whatever it calls things.
"""
