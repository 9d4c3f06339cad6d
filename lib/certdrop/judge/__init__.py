"""The judge: decides about hostile bytes, as _certdrop-judge, shut in."""
