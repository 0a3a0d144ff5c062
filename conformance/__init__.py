"""The calls to AWS that this project makes, right and wrong ones, with the answers that it relies on.

`make conformance` makes them on the embedded AWS, `make conformance AWS=real` on an account, and both compare the
answers with calls.yaml, where each says what it is known by.
"""
