"""The console: recent traces and the request dashboard, as pages of the admin.

`pages` answers requests, `waterfall` and `dashboard` turn what the store holds
into what a page shows, `svg` draws, `text` writes numbers and times. Imports
the packages up to business.
"""
