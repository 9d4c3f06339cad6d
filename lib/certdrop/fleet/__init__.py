"""A fleet: many hosts, whose requests travel through a database to the desks that talk with the CA; keys stay where they are."""
