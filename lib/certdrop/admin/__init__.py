"""The administrator's desk: tools used by hand, reachable neither by cron nor by sudo."""
