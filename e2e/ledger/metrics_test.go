package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// lookTimeout is how long a process may take to tell its figures: one that is
// frozen never does.
const lookTimeout = 2 * time.Second

// get asks over a connection of its own: the process of the last look may be
// gone.
func get(url string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Close = true
	client := http.Client{Timeout: lookTimeout}
	return client.Do(request)
}

// answers reports whether a URL answers 200.
func answers(url string) bool {
	response, err := get(url)
	if err != nil {
		return false
	}
	return response.Body.Close() == nil && response.StatusCode == http.StatusOK
}

// scrape reads metrics: the sum of all of a name, and each as name{label=value}.
func scrape(url string) (_ map[string]float64, err error) {
	response, err := get(url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	values := map[string]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			values[name] += value
			if len(m.GetLabel()) > 0 {
				values[name+labels(m.GetLabel())] = value
			}
		}
	}
	return values, nil
}

func labels(pairs []*dto.LabelPair) string {
	var list []string
	for _, p := range pairs {
		list = append(list, p.GetName()+"="+p.GetValue())
	}
	return "{" + strings.Join(list, ",") + "}"
}
