"""The administrator's tools, used by hand, reachable neither by cron nor by sudo."""
