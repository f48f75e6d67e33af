"""Small faults put into the library on purpose: does a test notice?"""
