"""The page at /: two answers side by side, each with its own gates, and what the streams do.

In: nothing but requests for the page. Out: static files, which call the API from the browser. May
import FastAPI only.

    page.py  routes of the page and its files
    static/  HTML, CSS and JavaScript, as they are sent
"""

from serve.playground.page import page_router

__all__ = ["page_router"]
