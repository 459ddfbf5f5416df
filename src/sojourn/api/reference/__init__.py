"""The reference that cannot lie: OpenAPI and a page, both made from the routes that the application serves.

openapi   routes into an OpenAPI 3.1 document      page   that document as one page of HTML
"""
