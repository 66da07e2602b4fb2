"""Files that nobody else may read and that are always whole, and locks on folders: what every room that keeps a secret
on the disk does the same way. Imports only `errors`; knows no file by name.
"""
