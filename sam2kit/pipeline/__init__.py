"""Run the staged notebooks unattended, once or for each point of a grid."""
