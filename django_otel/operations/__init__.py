"""Operations: system checks, the doctor, the command line and the scrape server.

May import every other package.
"""
