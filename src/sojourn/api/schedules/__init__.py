"""Schedules: runs again and again, by the clock.

shapes   what callers send and get      routes   the handlers
timing   cron lines and periods as instants      plan     what is due, and what becomes of what was missed
clock    fires what is due
"""
