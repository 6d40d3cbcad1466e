// Ask a service, with nothing but Go: go run examples/http/score.go [ADDRESS], from the folder of the checkout.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
)

type problem struct {
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

type scores struct {
	Scores []struct {
		Verdict       string  `json:"verdict"`
		LogLikelihood float64 `json:"log_likelihood"`
		Reason        string  `json:"reason"`
	} `json:"scores"`
}

var address = "http://localhost:8000"

// ask sends a request, and gives what the service answers; its problem document is the error.
func ask(method, path, contentType string, body []byte) ([]byte, error) {
	request, err := http.NewRequest(method, address+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode >= 400 {
		var found problem
		if err = json.Unmarshal(content, &found); err == nil {
			err = fmt.Errorf("%d: %s", found.Status, found.Detail)
		}
	}
	return content, err
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	// A verdict on each row; rows are JSON, an array of numpy, a table, or images.
	rows := must(os.ReadFile("examples/rows.json"))
	image := must(os.ReadFile("examples/valid/digit-3.png"))
	for contentType, body := range map[string][]byte{"application/json": rows, "image/png": image} {
		var scored scores
		content := must(ask("POST", "/score?false_alarm=0.01", contentType, body))
		if err := json.Unmarshal(content, &scored); err != nil {
			log.Fatal(err)
		}
		for _, score := range scored.Scores {
			fmt.Printf("%s %.1f %s\n", score.Verdict, score.LogLikelihood, score.Reason)
		}
	}

	// What the model makes of a row, and rows that it draws.
	fmt.Println(len(must(ask("POST", "/reconstruct.npy", "image/png", image))), "bytes of an array")
	fmt.Println(len(must(ask("GET", "/sample.png?num=4&seed=7", "", nil))), "bytes of a picture")

	// An error says what to send instead.
	if _, err := ask("POST", "/score", "text/plain", rows); err != nil {
		fmt.Println(err)
	}
}
