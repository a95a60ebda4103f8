"""A manifest that grows: which line makes the realloc of more than 8 MB?"""

data = b"0123456789abcdef" * 700_000
new = bytearray()
a = 0
while a < 9_000_000:
    b = a + 40_003
    new += data[a:b]
    a = b
