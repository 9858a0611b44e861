"""The command line: one file per noun. A command parses its arguments, calls one function and renders the result.

Leaves to others: all decisions. Only here is `sys.exit` called.
"""
