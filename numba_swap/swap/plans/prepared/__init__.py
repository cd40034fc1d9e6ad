"""Doing again what was done before: how copies ran, and what that followed from.

Most programs copy between the same arrays over and over. Everything is then as it was, or all but
the block ids is, and one compiled call checks that it is and launches the kernel, or submits the
loop over boxes. Whatever is not as it was is left to the long way, which looks at everything anew
and explains it.
"""
