"""The command line: one command a file.

Owns: arguments, output and exit codes.
Not here: what the commands do; they call the layers below.
"""
