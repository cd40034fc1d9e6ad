"""Three ways to move the bytes; each module has the same two verbs, none knows the others.

``why_not(driver, copies, situation)`` says why the mode cannot run a copy, or None; ``submit(...)``
enqueues it.
"""
