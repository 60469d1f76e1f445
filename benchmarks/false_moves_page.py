"""x"""
def section(raw): return ""
