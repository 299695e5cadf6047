/*
Copyright The clustermesh Authors.

Licensed under the Apache License, Version 2.0 (the "License");
you may not use this file except in compliance with the License.
You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software
distributed under the License is distributed on an "AS IS" BASIS,
WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
See the License for the specific language governing permissions and
limitations under the License.
*/

package datapath

// Usage returns how much of the maps is taken, of how much there is. What was removed
// a moment ago counts until lookups can no longer see it.
func (d *Datapath) Usage() (used, capacity Sizes, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return used, capacity, ErrClosed
	}
	capacity = d.Sizes()
	used.Frontends = uint32(len(d.set.service.items)-1) - uint32(d.indexes.available())
	used.Backends = capacity.Backends - uint32(d.backends.available())
	for _, s := range d.services {
		used.Slots += s.span.size
	}
	return used, capacity, nil
}
