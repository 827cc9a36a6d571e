# What every rollout is judged by unless it brings its own policy. A metric that is not measured says nothing here.
package aimesh.gates

import rego.v1

fail contains message if {
	input.metrics.accuracy <= 0.85
	message := sprintf("accuracy is %v, and must be above 0.85", [input.metrics.accuracy])
}

# Not input.metrics.error_rate: that is 0.1 when the first of ten requests happens to fail.
fail contains message if {
	input.surely.error_rate >= 0.05
	message := sprintf("error_rate is surely above %v, and must be below 0.05", [input.surely.error_rate])
}

fail contains message if {
	input.cost_increase >= 0.20
	message := sprintf("cost_per_request rose by %v %%, and must rise by less than 20 %%", [input.cost_increase * 100])
}
